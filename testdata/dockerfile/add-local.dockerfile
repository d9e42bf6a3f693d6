FROM alpine
ADD a.tar b.tgz /x/
ADD --unpack=false c.tar /y/
ADD --unpack d.tar /z/
ADD --chown=1:1 --exclude=*.tmp dir https://a.b/c <<doc /mixed/
x
doc
