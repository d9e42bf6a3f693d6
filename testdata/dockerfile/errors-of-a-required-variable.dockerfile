FROM alpine
WORKDIR ${DIR:?must be given}
