FROM scratch as bad
FROM scratch AS good
