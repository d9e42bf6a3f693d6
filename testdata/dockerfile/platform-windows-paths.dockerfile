FROM scratch
WORKDIR C:\app
