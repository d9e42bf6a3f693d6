FROM alpine
ENV SSH_AUTH_SOCK=/own
RUN --mount=type=ssh git
