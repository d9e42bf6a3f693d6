# check=skip=all;error=true
FROM scratch as a
copy x /
