FROM alpine
RUN --chown=1 x
ENV --from=x a=b
WORKDIR --mount=x /a
ADD --parents a /
FROM --target=x alpine
