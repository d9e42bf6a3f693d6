FROM scratch
COPY a /
copy b /
Copy c /
