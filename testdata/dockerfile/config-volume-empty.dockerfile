FROM scratch
VOLUME $V
