# check=skip=all
FROM alpine AS Odd
CMD x
