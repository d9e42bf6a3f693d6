FROM scratch AS bad
ENTRYPOINT run it
CMD with this
FROM scratch AS good
ENTRYPOINT ["run", "it"]
FROM scratch AS meant
SHELL ["/bin/sh", "-c"]
CMD run it
FROM meant
ENTRYPOINT run it
