FROM tree
RUN x
FROM other AS last
COPY --from=0 / /
