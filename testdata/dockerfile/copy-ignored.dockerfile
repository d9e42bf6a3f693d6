FROM scratch
COPY a.md dir/secret /x/
COPY ok /x/
# check=skip=CopyIgnoredFile
COPY b.md /x/
COPY --from=alpine c.md /x/
ADD https://a.b/c.md d.md /x/
