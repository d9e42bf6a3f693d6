FROM scratch AS bad
WORKDIR app/
FROM scratch AS good
WORKDIR /app
FROM good
WORKDIR below
