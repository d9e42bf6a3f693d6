FROM empty AS x
LABEL a=b
FROM x
COPY a /
