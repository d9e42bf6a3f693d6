from scratch
copy a /
COPY b /
