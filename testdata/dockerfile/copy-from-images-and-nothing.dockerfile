FROM alpine
COPY --from=busybox:1.36 /bin/busybox /bin/
COPY --from=busybox:1.36 /bin/sh /bin/
COPY --from=alpine /a /b
COPY --from=scratch /a /b
