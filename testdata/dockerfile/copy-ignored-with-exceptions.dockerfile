FROM scratch
COPY a.md /
