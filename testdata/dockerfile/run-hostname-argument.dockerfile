FROM alpine
RUN hostname
