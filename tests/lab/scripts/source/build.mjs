import { writeFileSync } from 'node:fs';
import { getHeapStatistics } from 'node:v8';
writeFileSync('built.json', JSON.stringify({ heap: Math.round(getHeapStatistics().heap_size_limit / 2 ** 20) }));
