/* Numbers as Python writes them. */

/** A number with so many digits after the point, as Python writes it: a tie goes to the even digit. */
export function fixed(value, digits) {
  const [whole, rest] = Math.abs(value).toFixed(60).split(".");
  if (!/^50*$/.test(rest.slice(digits))) return value.toFixed(digits);
  const kept = BigInt(whole + rest.slice(0, digits));
  const text = String(kept % 2n ? kept + 1n : kept).padStart(digits + 1, "0");
  return `${value < 0 ? "-" : ""}${text.slice(0, text.length - digits)}${digits ? `.${text.slice(-digits)}` : ""}`;
}

/** A number with so many digits that count, as Python's `g` writes it. */
export function general(value, digits) {
  if (value === 0) return "0";
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const power = Number(exponent);
  const short = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  if (power < -4 || power >= digits) return `${short(mantissa)}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  return short(value.toFixed(digits - 1 - power));
}
