FROM scratch
ADD https://a.b/dir/file.tar?x=1 /
ADD --checksum=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 --chmod=755 --unpack http://a.b/ /x
ADD --keep-git-dir=true https://a.b/c.git#v1:sub /git
ADD --keep-git-dir=false https://a.b/plain /plain
ADD git@a.b:c/d.git?tag=v1&submodules=false&commit=abcdef&mtime=commit /scp
