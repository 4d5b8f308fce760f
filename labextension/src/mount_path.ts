/** Paths in containers, as a cell's `volumes=` can say them. */

const MARKS = /[,:"\\\p{Cc}\p{Cf}]/u;

/** What is wrong with an absolute path, null when nothing is; what the system has is refused by the cell. */
export function pathProblem(path: string, taken: string[]): 'mark' | 'part' | 'taken' | null {
  if (MARKS.test(path)) {
    return 'mark';
  }
  if (path.slice(1).split('/').some(part => part === '' || part === '.' || part === '..')) {
    return 'part';
  }
  return taken.includes(path) ? 'taken' : null;
}
