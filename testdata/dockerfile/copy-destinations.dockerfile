FROM alpine
WORKDIR /w
COPY a b
COPY a ./
COPY a .
COPY a ..
COPY a ../x/
COPY a x/.
COPY a /
COPY a /abs//y/
COPY ["a b", "c d/"]
ARG D=/dir/
COPY a $D
COPY a ${UNSET}
