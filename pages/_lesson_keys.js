// A step begins at its top. Page Down and Page Up, which a presenter's clicker sends, scroll it as in any page, and lead
// to the next step or the one before from where there is no more to scroll.
document.querySelector('[data-testid="stMain"]')?.scrollTo(0, 0)
document.onkeydown = event => {
  const down = {PageDown: true, PageUp: false}[event.key], main = document.querySelector('[data-testid="stMain"]')
  const button = document.querySelector(`.st-key-lesson_${down ? 'next' : 'back'} button`)
  const elsewhere = event.target !== document.body && !main?.contains(event.target)  // such as in a dialog
  if (down === undefined || !button || elsewhere || event.defaultPrevented || event.target.tagName === 'TEXTAREA') return
  event.preventDefault()
  const left = down ? main.scrollHeight - main.clientHeight - main.scrollTop : main.scrollTop
  if (left > 1) main.scrollBy(0, (down ? 0.9 : -0.9) * main.clientHeight)
  else if (!event.repeat) button.click()
}
