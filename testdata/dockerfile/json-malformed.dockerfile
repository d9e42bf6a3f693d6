FROM alpine
RUN ['single']
CMD ["open
ENTRYPOINT ["a", "b"] x
VOLUME ["/a" "/b"]
COPY ["a", b] /c/
