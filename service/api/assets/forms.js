// An example of JSON in lines is those lines; Swagger UI puts it into quotes as a text of JSON.

export function LinesAsExamples(system) {
  const { getSampleSchema } = system.fn;
  const sample = (schema, contentType, config, example) =>
    /ndjson/i.test(contentType) && typeof example === "string"
      ? example
      : getSampleSchema(schema, contentType, config, example);
  return { fn: { getSampleSchema: sample } };
}
