from scratch AS bad
from scratch as good
