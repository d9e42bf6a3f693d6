FROM alpine
RUN [1]
CMD ["a", null]
ENTRYPOINT [["a"]]
SHELL [true]
VOLUME [{}]
COPY ["a", 1]
