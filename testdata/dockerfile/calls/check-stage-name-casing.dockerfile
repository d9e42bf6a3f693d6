FROM scratch AS Bad
FROM scratch AS good
