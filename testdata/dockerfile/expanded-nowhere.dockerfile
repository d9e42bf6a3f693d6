FROM alpine
ARG V=one
RUN echo $V "$V"
CMD echo $V
ENTRYPOINT ["$V"]
HEALTHCHECK CMD $V
SHELL ["$V"]
ONBUILD RUN $V
COPY --exclude=$V . /
