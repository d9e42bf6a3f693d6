FROM scratch
COPY https://a.b/c /
