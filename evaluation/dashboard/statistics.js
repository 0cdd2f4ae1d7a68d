"use strict";
// Figures about figures: pure functions of numbers, which know nothing of runs or of the page.

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Sample standard deviation; NaN below two values. */
function deviation(values) {
  const centre = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - centre) ** 2, 0) / (values.length - 1));
}

/** The points {cost, loss} that no other point beats in one without being worse in the other, by rising cost. */
function paretoFront(points) {
  const front = [];
  let least = Infinity;
  for (const point of [...points].sort((a, b) => a.cost - b.cost || a.loss - b.loss)) {
    if (point.loss < least) {
      front.push(point);
      least = point.loss;
    }
  }
  return front;
}

/** Pearson's r; NaN when one of the two does not vary. */
function pearson(xs, ys) {
  const [x0, y0] = [mean(xs), mean(ys)];
  let [xy, xx, yy] = [0, 0, 0];
  xs.forEach((x, i) => {
    xy += (x - x0) * (ys[i] - y0);
    xx += (x - x0) ** 2;
    yy += (ys[i] - y0) ** 2;
  });
  return xx > 0 && yy > 0 ? xy / Math.sqrt(xx * yy) : NaN;
}

/** Ranks from 1; equal values share the mean of theirs. */
function ranks(values) {
  return values.map((value) => {
    const below = values.filter((other) => other < value).length;
    const same = values.filter((other) => other === value).length;
    return below + (same + 1) / 2;
  });
}

const spearman = (xs, ys) => pearson(ranks(xs), ranks(ys));

/** Correlation of x and y when the linear influence of z on both is taken out. */
function partialCorrelation(xs, ys, zs) {
  const [xy, xz, yz] = [pearson(xs, ys), pearson(xs, zs), pearson(ys, zs)];
  const rest = (1 - xz ** 2) * (1 - yz ** 2);
  return rest > 1e-12 ? (xy - xz * yz) / Math.sqrt(rest) : NaN;
}

/**
 * 95 % interval of Pearson's r over n pairs by Fisher's z = atanh(r), whose standard error is 1 / sqrt(n - held - 3) when
 * `held` independent figures were held constant; NaN where nothing is left.
 */
function fisherInterval(r, n, held = 0) {
  const half = 1.959964 / Math.sqrt(n - held - 3);
  if (!(n - held - 3 > 0)) return [NaN, NaN];
  return [Math.tanh(Math.atanh(r) - half), Math.tanh(Math.atanh(r) + half)];
}

/** The values, each less the mean of its group; what rounding leaves is nothing. */
function withoutGroupMeans(values, groups) {
  const means = new Map();
  for (const group of new Set(groups)) means.set(group, mean(values.filter((_, i) => groups[i] === group)));
  return values.map((value, i) => {
    const rest = value - means.get(groups[i]);
    return Math.abs(rest) > 1e-12 * Math.abs(value) ? rest : 0;
  });
}

/** Least-squares line y = intercept + slope x. */
function regressionLine(xs, ys) {
  const [x0, y0] = [mean(xs), mean(ys)];
  const slope =
    xs.reduce((sum, x, i) => sum + (x - x0) * (ys[i] - y0), 0) / xs.reduce((sum, x) => sum + (x - x0) ** 2, 0);
  return { slope, intercept: y0 - slope * x0 };
}
