FROM alpine AS a
RUN a
FROM Not:A:Reference AS broken
COPY --from=missing-image x /
FROM a AS b
COPY --from=A /x /y
COPY --from=0 /x /y
FROM broken AS c
