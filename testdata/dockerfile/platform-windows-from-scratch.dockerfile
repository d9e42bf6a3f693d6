FROM scratch
COPY app.exe /
CMD app.exe
