# syntax=docker/dockerfile:1
FROM golang:1.26 AS build
WORKDIR $GOPATH/src/app
COPY . .
RUN go build -o /app

FROM scratch
COPY --from=build /app /app
ENTRYPOINT ["/app"]
