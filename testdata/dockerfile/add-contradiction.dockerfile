FROM scratch
ADD --keep-git-dir=false https://a.b/c.git?keep-git-dir=true /
