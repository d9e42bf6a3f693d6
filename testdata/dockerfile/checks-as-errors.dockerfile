# check=error=true
FROM alpine AS Odd
CMD x
