FROM alpine AS one
ENTRYPOINT ["e"]
FROM alpine AS two
CMD ["own"]
ENTRYPOINT ["e"]
FROM two AS three
ENTRYPOINT ["f"]
FROM alpine
COPY --from=one a /
COPY --from=three a /
SHELL ["/bin/bash", "-c"]
CMD in shell
ENTRYPOINT also "quoted" é	tab
