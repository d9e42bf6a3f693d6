FROM alpine
RUN a
COPY c /
