FROM scratch
EXPOSE 80/TcP 8080/udp
