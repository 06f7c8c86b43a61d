// The address of the page says which call is open. Swagger UI reads it once, adds it to the history again for each
// reading and for what is folded out within a call, so that "back" stays where it is, and complains of underlines.

export function FollowAddress(system) {
  // As its action `show` does, but for the address.
  const set = (thing, shown = true) => system.getStore().dispatch({ type: "layout_show", payload: { thing, shown } });
  const isWithinCall = (thing) => thing[0] === "operations" && thing.length > 3;
  const show = (original) => (thing, shown) => (isWithinCall(thing) ? set(thing, shown) : original(thing, shown));
  const open = (hash) => {
    const parts = hash.replace(/^#!?\/?/, "").split("/");
    const thing = system.layoutSelectors.isShownKeyFromUrlHashArray(parts);
    if (parts[0] !== "") {
      set(thing);
      system.layoutActions.scrollTo(thing);
    }
    return thing;
  };
  window.addEventListener("hashchange", () => {
    const thing = open(decodeURIComponent(location.hash));
    document.getElementById(thing.join("-"))?.scrollIntoView();
  });
  return { statePlugins: { layout: { wrapActions: { parseDeepLinkHash: () => open, show } } } };
}
