# syntax=example.com/frontend
FROM scratch
COPY a /
