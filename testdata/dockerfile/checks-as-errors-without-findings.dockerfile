# check=error=true;skip=UndefinedVar
FROM alpine
COPY $x /
