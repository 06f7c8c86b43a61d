// The description, asked for again while the page is open: with another key, and while plugins may still be loading, of
// which it tells once they have.
const AFTER_S = [1, 2, 4, 8, 16, 32, 64, 128];
let keysTried = 0;

// What the description is with these headers, from now on.
export async function refresh(system, description, headers) {
  keysTried += 1;
  await ask(system, description, headers, () => true);
}

export function ShowPluginsAsTheyLoad(description, headers) {
  // A new description takes the cursor out of the field in which somebody types.
  const isTyping = () => document.activeElement?.matches("input, textarea, select");
  const afterLoad = (system) => {
    // After a restart plugins load anew; meanwhile the calls that are open stay.
    const hasGrown = (text) => text.length > system.specSelectors.specStr().length;
    const askForMore = () => isTyping() || ask(system, description, headers(), hasGrown);
    for (const seconds of AFTER_S) setTimeout(askForMore, seconds * 1000);
  };
  return { afterLoad };
}

// Not with Swagger UI's own `download`: where the service is away, that takes all of the page, and what is typed, away.
async function ask(system, description, headers, isWanted) {
  const tried = keysTried; // an answer to an earlier key may come late
  const answer = await fetch(description, { headers }).catch(() => null);
  if (!answer?.ok) return;
  const text = await answer.text();
  if (tried === keysTried && isWanted(text)) system.specActions.updateSpec(text);
}
