FROM alpine
ENTRYPOINT ["e"]
