FROM --platform=$TARGETPLATFORM scratch AS bad
FROM --platform=${TARGETPLATFORM} scratch AS worse
FROM --platform=$BUILDPLATFORM scratch AS good
