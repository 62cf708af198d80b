"""The page of a sweep in a real browser, Debian's Chromium without a screen. `make test-browser` installs it.

The screenshots are for people: they are in runs/browser.
"""

import shutil
import statistics

import made_up
import pytest
from conftest import ROOT, command

from mobilenet_jax.storage import files, run_files
from mobilenet_jax.sweeps import page as page_lib
from mobilenet_jax.sweeps import results

sync_api = pytest.importorskip('playwright.sync_api', reason='make test-browser')
CHROMIUM = shutil.which('chromium')
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM, reason='needs chromium: make test-browser')]
SCREENSHOTS = ROOT / 'runs' / 'browser'
MARKUP = '<script>document.title = "taken over"</script>'
REASON = '"quotes" & \'more\' </script><img src=x onerror="document.title = 1">'
WIDE, PHONE = {'width': 1280, 'height': 900}, {'width': 360, 'height': 740}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Pages of a grid of 48 runs and more, of learning rates, and of attributes."""
  root = tmp_path_factory.mktemp('sweeps')
  made_up.grid(root / 'grid')
  made_up.failed(root / 'grid', 'mobilenet_0.5_224_s0', REASON, seed=7)
  made_up.failed(root / 'grid', 'mobilenet_"0.5"<b>bold</b>', 'out of memory', seed=8)
  made_up.add(root / 'grid', 'mobilenet_0.5_112_s0', made_up.config(0.5, 112), finished=False)
  results.add_runs(root / 'grid', [*results.read_sweep(root / 'grid'), MARKUP.replace('/', '∕')])
  for rate in (0.003, 0.01, 0.03):
    for alpha in (1.0, 0.5, 0.25):
      for batch in (16, 32):
        made_up.add(root / 'rates', f'mobilenet_{alpha}_56_lr{rate}_b{batch}', made_up.config(alpha, batch_size=batch, **{
            'optim.learning_rate': rate, 'data.data_dir': f'{MARKUP} {batch}'}))
  made_up.grid(root / 'attributes', seeds=1, task='attributes')
  with files.lock(root / 'grid' / 'mobilenet_0.5_112_s0'):  # as the process that trains it does
    page_lib.write([root / 'grid'], root / 'grid.html')
  page_lib.write([root / 'rates', root / 'attributes'], root / 'both.html')
  return root


@pytest.fixture(scope='module')
def browser():
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
    yield browser
    browser.close()


@pytest.fixture
def look(browser, folder):
  """Opens pages. At the end there must have been no message in the console, no dialog, and no request but for the page."""
  said, contexts = [], []

  def opened(name, **options):
    context = browser.new_context(**{'viewport': WIDE, **options})
    contexts.append(context)
    page = context.new_page()
    page.on('console', lambda message: said.append(message.text))
    page.on('pageerror', lambda error: said.append(str(error)))
    page.on('dialog', lambda dialog: said.append(dialog.message))
    address = (folder / name).as_uri()
    page.on('request', lambda request: said.append(request.url) if request.url.split('#')[0] != address else None)
    page.goto(address)
    if options.get('java_script_enabled', True):
      for chart in page.locator('.chart').all():
        chart.locator('svg').wait_for()
    return page

  yield opened
  for context in contexts:
    context.close()
  assert not said


def marks(page, figure=None):
  """The points of a panel's Figures 4 and 5, or of one of them."""
  found = page.locator('[data-chart=costs] >> nth=0 >> g.mark-symbol.role-mark path')
  count = found.count() // 2
  return found.all() if figure is None else found.all()[:count] if figure == 4 else found.all()[count:]


def named(page, name, figure=4):
  return next(mark for mark in marks(page, figure) if mark.get_attribute('aria-label').startswith(f'{name}: '))


def middle(mark):
  box = mark.bounding_box()
  return box['x'] + box['width'] / 2, box['y'] + box['height'] / 2


def names(page, table):
  return page.locator(f'#{table} tbody tr:visible th').all_inner_texts()


def column(page, table, title):
  titles = [text.split()[0] for text in page.locator(f'#{table} thead th').all_inner_texts()]
  return page.locator(f'#{table} tbody tr:visible > :nth-child({titles.index(title) + 1})').all_inner_texts()


def test_a_point_is_a_mean_over_seeds_and_says_so_when_hovered_over(look, folder):
  page = look('grid.html')
  assert len(marks(page, 4)) == len(marks(page, 5)) == 16
  assert page.locator('[data-chart=costs] g.mark-rule.role-mark line[stroke]').count() >= 32  # the deviations
  rows = [run_files.read_row(folder / 'grid' / f'mobilenet_0.5_48_s{seed}') for seed in range(3)]
  top1 = [100 * row['top1'] for row in rows]
  for figure in (4, 5):
    named(page, 'mobilenet_0.5_48', figure).hover()
    tooltip = page.locator('#vg-tooltip-element.visible')
    tooltip.wait_for()
    text = ' '.join(tooltip.inner_text().split())
    assert text.startswith('mobilenet_0.5_48 ')
    for expected in ('α 0.5', 'input 48', f'Mult-Adds {rows[0]["mult_adds"] / 1e6:.2f} M',
                     f'parameters {rows[0]["params"] / 1e6:.2f} M', f'top-1 (%) {statistics.mean(top1):.2f} ± {statistics.stdev(top1):.2f} % (3 seeds)',
                     f'seconds {rows[0]["seconds"]:.1f}'):
      assert expected in text, text
    page.mouse.move(0, 0)
    tooltip.wait_for(state='hidden')


def test_what_is_brushed_in_one_figure_is_marked_in_the_other(look):
  page = look('grid.html')
  places = [middle(mark) for mark in marks(page, 4)]
  half = sorted(x for x, _ in places)[8]
  page.mouse.move(min(x for x, _ in places) - 10, min(y for _, y in places) - 10)
  page.mouse.down()
  page.mouse.move(half, max(y for _, y in places) + 10, steps=5)
  page.mouse.up()
  sync_api.expect(page.locator('[data-chart=costs] g.mark-symbol.role-mark path:not([opacity="1"])')).not_to_have_count(0)
  strong = [{mark.get_attribute('aria-label') for mark in marks(page, figure) if mark.get_attribute('opacity') == '1'}
            for figure in (4, 5)]
  left = {mark.get_attribute('aria-label') for mark, (x, _) in zip(marks(page, 4), places) if x <= half + 0.5}
  assert strong[0] == strong[1] == left and 8 <= len(left) <= 9
  page.screenshot(path=SCREENSHOTS / 'brushed.png')
  page.locator('#runs input[data-run="20"]').check()  # another chosen run keeps what is brushed
  sync_api.expect(page.locator('[data-chart=costs] g.mark-symbol.role-mark path[stroke="var(--ink)"]')).to_have_count(8)
  assert {mark.get_attribute('aria-label') for mark in marks(page, 5) if mark.get_attribute('opacity') == '1'} == strong[0]


def test_learning_curves_of_chosen_runs(look):
  page = look('grid.html')
  lines = page.locator('[data-chart=curves] g.mark-line.role-mark path')
  assert lines.count() == 2 * page.locator('#runs input:checked').count() == 6  # the measure, and the loss
  page.get_by_role('button', name='Choose none').click()
  sync_api.expect(lines).to_have_count(0)
  page.get_by_label('learning curve of mobilenet_1.0_32_s1').check()
  sync_api.expect(lines).to_have_count(2)
  named(page, 'mobilenet_0.25_56').click()
  sync_api.expect(lines).to_have_count(8)
  checked = page.locator('#runs tr:has(input:checked) th').all_inner_texts()
  assert checked == ['mobilenet_1.0_32_s1', *(f'mobilenet_0.25_56_s{seed}' for seed in range(3))]
  assert page.locator('[data-chart=curves] .role-legend-label text').all_text_contents() == checked
  sync_api.expect(page.locator('[data-chart=costs] g.mark-symbol.role-mark path[stroke="var(--ink)"]')).to_have_count(4)
  page.get_by_label('learning curve of mobilenet_0.5_112_s0').check()  # which still trains
  sync_api.expect(lines).to_have_count(10)


def test_tables_are_sorted_and_filtered_by_keyboard(look):
  page = look('grid.html')
  before = names(page, 'runs')
  assert len(before) == 52
  for title, kind in (('seconds', float), ('name', str), ('top-1', lambda text: float(text.rstrip('%')))):
    button = page.locator('#runs').get_by_role('button', name=title, exact=True)
    header = page.locator('#runs th', has=page.get_by_role('button', name=title, exact=True))
    for direction in ('ascending', 'descending'):
      button.focus()
      page.keyboard.press('Enter')
      assert header.get_attribute('aria-sort') == direction
      assert page.locator('#runs [aria-sort=ascending], #runs [aria-sort=descending]').count() == 1
      found = column(page, 'runs', title)
      known = [kind(text) for text in found if text != '–']
      if kind is not str:
        assert known == sorted(known, reverse=direction == 'descending')
        assert found[len(known):] == ['–'] * 4  # the last, whatever the direction
      else:
        finished = [text for text in known if text.startswith('mobilenet_1.0_')]
        assert finished == sorted(finished, reverse=direction == 'descending')
  page.locator('[data-filter=runs]').focus()
  page.keyboard.type('_0.5_ finished')
  assert len(names(page, 'runs')) == 12 and page.locator('[data-count=runs]').inner_text() == '12 of 52 rows'
  page.get_by_label('learning curve of mobilenet_0.5_56_s2').focus()
  page.keyboard.press('Space')
  assert page.get_by_label('learning curve of mobilenet_0.5_56_s2').is_checked()
  page.locator('[data-filter=runs]').fill('')
  assert sorted(names(page, 'runs')) == sorted(before)
  top1 = [float(text.split()[0]) for text in column(page, 'points-classification', 'top-1')]
  drawn = {float(mark.get_attribute('aria-label').split('(%) ')[1].split()[0]) for mark in marks(page, 4)}
  assert len(top1) == 16 and set(top1) == drawn  # the table has what the figure shows


def test_names_stay_text_and_what_failed_is_said(look):
  page = look('grid.html')
  rows = [[cell.inner_text() for cell in row.locator('th, td').all()] for row in page.locator('#unfinished tbody tr').all()]
  states = {row[0]: row[2:] for row in rows}
  assert states['mobilenet_0.5_224_s0'] == ['failed', REASON] and states['mobilenet_"0.5"<b>bold</b>'][0] == 'failed'
  assert states['mobilenet_0.5_112_s0'][0] == 'running' and 'step 500/1000, top-1' in states['mobilenet_0.5_112_s0'][1]
  assert states[MARKUP.replace('/', '∕')] == ['waiting', 'not started'] and len(rows) == 4
  assert page.locator('img').count() == 0 and page.title().startswith('grid: 48 finished, ')
  page = look('both.html')
  assert f'{MARKUP} 16' in page.locator('#configs').inner_text()
  assert page.title().startswith('rates, attributes: ')
  marks(page, 4)[-1].hover(force=True)  # several are in one place
  assert MARKUP in page.locator('#vg-tooltip-element.visible').inner_text()


def test_parallel_coordinates_and_a_measure_for_each_task(look):
  page = look('both.html')
  parallel = page.locator('[data-chart=parallel]')
  assert parallel.count() == 1
  assert parallel.locator('g.mark-line.role-mark path').count() == 18
  labels = parallel.locator('.role-axis-label text').all_text_contents()
  assert labels == ['α', 'data.data_dir', 'batch_size', 'optim.learning_rate', 'top-1 (%)']
  assert page.locator('section h2').all_inner_texts()[:2] == [
      'Classification: top-1 against cost', 'Attributes: mean AP against cost']
  select = page.get_by_label('Colour').first
  assert select.locator('option').all_inner_texts() == ['α', 'data.data_dir', 'batch_size', 'optim.learning_rate']
  select.select_option(label='optim.learning_rate')
  legend = page.locator('[data-chart=costs] >> nth=0 >> .role-legend-title text').first
  sync_api.expect(legend).to_have_text('optim.learning_rate')
  page.screenshot(path=SCREENSHOTS / 'both_wide.png', full_page=True)


def test_the_policy_forbids_eval_other_scripts_and_the_network(browser, folder):
  page = browser.new_context().new_page()
  page.goto((folder / 'grid.html').as_uri())
  later = '''() => new Promise(resolve => setTimeout(() => {  // for the driver's own code no policy holds
    try { resolve(window.eval('1')); } catch (error) { resolve(error.name); }
  }))'''
  assert page.evaluate(later) == 'EvalError'
  assert page.evaluate('''() => fetch('https://example.org').catch(error => error.name)''') == 'TypeError'
  violated = page.evaluate('''() => new Promise(resolve => {
    addEventListener('securitypolicyviolation', event => resolve(event.effectiveDirective));
    const script = document.createElement('script');
    script.textContent = 'document.title = "taken over"';
    document.body.append(script);
  })''')
  assert violated.startswith('script-src') and page.title().startswith('grid')


@pytest.mark.parametrize('name', ('grid', 'both'))
@pytest.mark.parametrize('scheme', ('light', 'dark'))
def test_both_themes_wide_and_on_a_phone(name, scheme, look):
  for device, options in (('wide', {}), ('phone', {'viewport': PHONE, 'has_touch': True, 'is_mobile': True,
                                                   'device_scale_factor': 2})):
    page = look(f'{name}.html', color_scheme=scheme, **options)
    width = page.viewport_size['width']
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    for chart in page.locator('.chart svg').all():
      box = chart.bounding_box()
      assert box['width'] > 0.8 * width * (1 if device == 'phone' else 0.8) and box['x'] + box['width'] <= width
    figures = [marks(page, figure)[0].bounding_box() for figure in (4, 5)]
    assert (figures[1]['y'] > figures[0]['y'] + 200) == (device == 'phone')  # below each other
    assert min(contrast(page, element) for element in page.locator(
        'body, figcaption, nav a, #unfinished td, thead th, .chart svg text').all()[:120]) >= 4.5  # WCAG's AA
    page.screenshot(path=SCREENSHOTS / f'{name}_{device}_{scheme}.png', full_page=True)


def contrast(page, element):
  """The ratio of WCAG between the colour of a text and that of the page."""
  text, paper = element.evaluate('''element => [element.closest('svg') ? getComputedStyle(element).fill :
      getComputedStyle(element).color, getComputedStyle(document.body).backgroundColor]''')
  light = []
  for color in (text, paper):
    red, green, blue = (float(part) / 255 for part in color[color.index('(') + 1:-1].split(',')[:3])
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
  return (max(light) + 0.05) / (min(light) + 0.05)


def test_a_finger_scrolls_over_a_chart(look):
  page = look('grid.html', viewport=PHONE, has_touch=True, is_mobile=True)
  session, (_, y) = page.context.new_cdp_session(page), middle(marks(page, 4)[0])
  touch = lambda kind, *points: session.send('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': list(points)})
  touch('touchStart', {'x': 180, 'y': y})
  for i in range(1, 16):
    touch('touchMove', {'x': 180, 'y': y - 10 * i})
  touch('touchEnd')
  page.wait_for_function('scrollY > 100')
  assert all(mark.get_attribute('opacity') == '1' for mark in marks(page, 4))


def test_on_paper_it_is_light_and_whole(look):
  page = look('grid.html', color_scheme='dark')
  page.locator('[data-filter=runs]').fill('nothing like this')
  assert not names(page, 'runs')
  page.emulate_media(media='print', color_scheme='dark')
  assert len(names(page, 'runs')) == 52
  assert page.evaluate('getComputedStyle(document.body).backgroundColor') == 'rgb(255, 255, 255)'
  assert contrast(page, page.locator('.chart svg text').first) > 7
  assert not page.locator('input:visible, select:visible, nav:visible').count()
  page.screenshot(path=SCREENSHOTS / 'print.png', full_page=True)
  assert page.pdf().startswith(b'%PDF')


def test_without_scripts_the_tables_are_there(look):
  page = look('grid.html', java_script_enabled=False)
  assert len(names(page, 'runs')) == 52 and 'Without scripts' in page.locator('main').inner_text()


def test_every_control_and_chart_has_a_name(look):
  page = look('grid.html')
  controls = page.locator('button, input, select, a, [tabindex="0"], [role=group]').all()
  unnamed = [control.evaluate('element => element.outerHTML.slice(0, 100)') for control in controls if not control.evaluate('''
      element => element.getAttribute('aria-label') || element.innerText || (element.labels && element.labels[0].innerText)
      ''')]
  assert len(controls) > 60 and not unnamed
  for link in page.locator('a[href^="#"]').all():
    assert page.locator(link.get_attribute('href')).count() == 1


def test_the_command_writes_it_while_a_sweep_runs(look, folder):
  made_up.add(folder / 'begun', 'mobilenet_0.5_56', made_up.config(0.5), finished=False)
  done = command('report', folder / 'begun', '--out', folder / 'begun.html')
  assert done.returncode == 0, done.stderr
  page = look('begun.html')
  assert 'No run has finished yet' in page.locator('main').inner_text()
  page.get_by_label('learning curve of mobilenet_0.5_56').check()
  sync_api.expect(page.locator('[data-chart=curves] g.mark-line.role-mark path')).to_have_count(2)
