// The description, asked for again while the page is open.

// Not with Swagger UI's own `download`: where the service is away, that takes all of the page, and what is typed, away.
export async function refresh(system, description, headers) {
  const answer = await fetch(description, { headers }).catch(() => null);
  if (answer?.ok) system.specActions.updateSpec(await answer.text());
}
