import { notebookText, parseTable, plainText } from './previews';

test('a table with quotes, line breaks in them, and a last line without one', () => {
  const table = parseTable('a,b\r\n"x, ""y""",2\r\n"two\nlines",\n3', ',', 10);
  expect(table).toEqual({ head: ['a', 'b'], rows: [['x, "y"', '2'], ['two\nlines', ''], ['3']], total: 3 });
  expect(parseTable('a\tb\n1\t"2"\n', '\t', 10)).toEqual({ head: ['a', 'b'], rows: [['1', '2']], total: 1 });
  expect(parseTable('', ',', 10)).toEqual({ head: [], rows: [], total: 0 });
});

test('of many rows the first are there and all are counted', () => {
  const text = 'n\n' + Array.from({ length: 700 }, (_, n) => `${n}\n`).join('');
  const table = parseTable(text, ',', 200);
  expect([table.rows.length, table.rows[199], table.total]).toEqual([200, ['199'], 700]);
  expect(parseTable(text, ',', 700).rows.length).toBe(700);
});

test('where the text was cut its last row is left out', () => {
  expect(parseTable('a,b\n1,2\n3,4', ',', 10, true)).toEqual({ head: ['a', 'b'], rows: [['1', '2']], total: 1 });
});

test('a text as a terminal shows it', () => {
  expect(plainText(`${'x'.repeat(1 << 20)}\r${'\r'.repeat(1 << 20)}y`)).toBe('y'); // at once, however long a line is
  expect(plainText('\r\r')).toBe('');
  expect(plainText('\u001b[31mred\u001b[0m\r\n10 %\r50 %\r100 %\r\nend\r')).toBe('red\n100 %\nend');
});

test('a notebook: sources and outputs as text, other kinds by their name', () => {
  const cells = [
    { cell_type: 'markdown', source: ['# Title\n', 'words'] },
    {
      cell_type: 'code', source: 'show()', outputs: [
        { output_type: 'stream', name: 'stdout', text: ['one\n', '\u001b[1mtwo\u001b[0m\n'] },
        { output_type: 'display_data', data: { 'text/html': '<script>window.pwned = 1</script>', 'image/png': 'AAAA' } },
        { output_type: 'execute_result', data: { 'text/plain': ['4', '2'], 'text/html': '<b>42</b>' } },
        { output_type: 'error', ename: 'ValueError', evalue: 'no', traceback: ['\u001b[0;31mTraceback', 'ValueError: no'] },
        { output_type: 'error', ename: 'KeyError', evalue: "'x'", traceback: [] }
      ]
    }
  ];
  expect(notebookText(JSON.stringify({ cells }))).toBe(
    '# [markdown]\n# Title\nwords\n\n# [code]\nshow()\n# [output]\none\ntwo\n# [output]\n[text/html]\n[image/png]\n' +
      "# [output]\n42\n[text/html]\n# [output]\nTraceback\nValueError: no\n# [output]\nKeyError: 'x'"
  );
});

test.each(['', '[]', '{}', '{"cells": 7}', '{"cells"', 'null'])('%s is no notebook', text => {
  expect(() => notebookText(text)).toThrow();
});

test.each(['[null]', '[{"outputs": [null, 3, {"data": null}], "source": [1, {}]}]', '["x"]'])('cells that are none do no harm: %s', cells => {
  expect(notebookText(`{"cells": ${cells}}`)).toContain('# []');
});
