<?php

declare(strict_types=1);

require __DIR__ . '/../src/moon.php';

assert(lit(947182440) < 0.001);
assert(lit(948457290) > 0.99);
echo "ok\n";
