FROM a AS first
COPY --from=later x y
FROM b AS later
