// The description, asked for again while the page is open: with another key, and while plugins may still be loading, of
// which it tells once they have.
const AFTER_S = [1, 2, 4, 8, 16, 32, 64, 128];
let asked = 0;

// Not with Swagger UI's own `download`: where the service is away, that takes all of the page, and what is typed, away.
export async function refresh(system, description, headers) {
  const turn = ++asked; // an answer to another key may come late
  const answer = await fetch(description, { headers }).catch(() => null);
  if (!answer?.ok) return;
  const text = await answer.text();
  if (turn === asked && text !== system.specSelectors.specStr()) system.specActions.updateSpec(text);
}

export function ShowPluginsAsTheyLoad(description, headers) {
  // A new description takes the cursor out of the field in which somebody types.
  const isTyping = () => document.activeElement?.matches("input, textarea, select");
  const afterLoad = (system) => {
    const ask = () => isTyping() || refresh(system, description, headers());
    for (const seconds of AFTER_S) setTimeout(ask, seconds * 1000);
  };
  return { afterLoad };
}
