FROM a AS build
FROM build AS test
