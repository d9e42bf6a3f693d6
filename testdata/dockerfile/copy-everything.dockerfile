FROM scratch
COPY a /
COPY . /
