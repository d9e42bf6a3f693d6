FROM scratch AS base
FROM scratch
COPY ignored ./dir/../ignored kept /
ADD below/ignored /
COPY --from=base ignored /
